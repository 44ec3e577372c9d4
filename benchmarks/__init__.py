"""Speed, measured side by side: ``make bench`` runs it all, docs/speed.md tells what is measured and why so."""
