// The page has no form yet.
