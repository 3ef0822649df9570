"""What is pending of a manifest: rows checked, what is done left out, what is wrong refused."""
