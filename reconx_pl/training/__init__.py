"""LightningModule, stages, callbacks."""
