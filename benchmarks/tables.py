"""Markdown tables of benchmark results."""


def print_table(lines: list[dict]) -> None:
    """Print rows that share their keys as one Markdown table."""
    print("| " + " | ".join(lines[0]) + " |\n|" + "---|" * len(lines[0]))
    for line in lines:
        print("| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in line.values()) + " |")
