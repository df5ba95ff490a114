"""A blind user study: `pages.make_study` makes voting pages, `votes.read_votes` reads what people said, `report` counts it."""
