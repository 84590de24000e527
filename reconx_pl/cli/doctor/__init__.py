"""What this machine has of what the package needs, and what mends the rest. It looks; it mends nothing.

It has to run where the packages that everything else imports do not: a torchvision of another torch takes torchmetrics,
lpips and Lightning with it when they are imported.
"""
