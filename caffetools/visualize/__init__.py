"""Pictures: filters, curves, confusion matrices; the HTML report."""
