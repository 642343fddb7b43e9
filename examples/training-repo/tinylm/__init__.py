"""A language model of one's own, small enough to be built and audited in every run of the tests."""
