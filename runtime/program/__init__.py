"""From a job to a sampling program, in float64 and before the first step; knows neither engines nor devices."""
