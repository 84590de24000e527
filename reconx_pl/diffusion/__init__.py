"""The video diffusion model: U-Net, schedule, guidance, sampler, autoencoder, weight adapters."""
