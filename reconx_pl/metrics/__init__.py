"""PSNR, SSIM and LPIPS, for the fit and for the evaluation."""
