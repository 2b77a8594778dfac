"""``fb-calibrate``: where the models may be switched and which constants step caches take, measured on a bundle."""
