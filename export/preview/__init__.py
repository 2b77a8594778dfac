"""A linear map from latents to small pictures, fitted on a VAE: previews of videos in the making."""
