"""Stage 3: a bundle and a prompt -> a video. Knows neither torch nor any model family."""
