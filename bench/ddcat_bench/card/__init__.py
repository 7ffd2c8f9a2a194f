"""The robustness card: one page about a model or an engine, from the results that are there: `ddcat report`."""
