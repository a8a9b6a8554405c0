"""Networks in whose features images are compared; they import what stands below the images."""
