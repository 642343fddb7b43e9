"""What a limit on one column cannot say."""

from pytest_deaddir import rule


@rule("ACME002", table="norms", severity="error", confidence="heuristic")
def one_coordinate_carries_the_kernel(row):
    """A few coordinates carry the kernel of a norm: quantising them one by one would break it."""
    if row.kind == "layernorm" and row.participation_ratio < 0.1 * row.features:
        return f"the kernel of {row.path} lies in {row.participation_ratio:.1f} of {row.features} coordinates"
