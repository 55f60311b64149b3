"""What a run has come to, for people: a report in one HTML file and a contact sheet."""
