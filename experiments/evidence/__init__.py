"""Does choosing text by perplexity work? Pools with known dirt, arms at equal tokens, one table; see protocol.md."""
