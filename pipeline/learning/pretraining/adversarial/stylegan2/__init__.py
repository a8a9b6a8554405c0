"""StyleGAN2-ADA for training: networks in the official parametrisation, losses, files."""
