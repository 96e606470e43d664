"""What tasks are made of: reading tables, splitting them, numbering labels, batching and scoring."""
