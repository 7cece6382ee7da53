"""The page that jobs.report writes: what a run folder records, its curves, and the HTML around them."""
