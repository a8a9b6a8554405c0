"""StyleGAN2-ADA and IC-GAN on it: generator, mapping, discriminator; imports `teachers.gan`."""
