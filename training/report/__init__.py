"""What a run reports: ``tables`` (lines and tables for a terminal), ``history`` (its epochs), ``plots``, ``page`` (``report.html``)."""
