"""What a frozen network says of every record, computed once and stored beside the records."""
