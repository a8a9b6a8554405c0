"""Networks that this package itself trains; imports `teachers` and `images`."""
