"""Did it get better, and by how much: measures, pictures and the report page."""
