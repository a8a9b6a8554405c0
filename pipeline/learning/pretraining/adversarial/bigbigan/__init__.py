"""BigBiGAN: generator and encoder against one discriminator of images, latents and their pairs."""
