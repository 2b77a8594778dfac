"""A folder for each model family, and what they share: text encoders, tokenizers, and which two make a pair."""
