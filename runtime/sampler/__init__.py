"""From a program to latents: binds it to engines and a device, and runs its instructions; knows no model family."""
