"""SS-GAN and SNGAN, generator and discriminator; imports `teachers.gan` and what it may."""
