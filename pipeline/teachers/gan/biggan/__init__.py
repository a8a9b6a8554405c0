"""BigGAN, BigGAN-deep and IC-GAN; imports `teachers.gan`."""
