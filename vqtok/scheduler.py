def parse_shard(text: str, environ: object) -> tuple[int, int]:
    """Parse."""
    k, n = text.split("/")
    return int(k), int(n)
