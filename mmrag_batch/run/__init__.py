"""One run of `predict`: begun or taken up again, answered, committed, published."""
