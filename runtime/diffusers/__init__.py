"""diffusers' video pipelines, with a bundle behind them: their arguments in, their frames out."""
