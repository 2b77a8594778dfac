"""What a run takes and gives: prompts as tokens, noise, latents as files, decoding, and videos."""
