"""Programs that run inside the environments of the compared systems; they import nothing of gcgkit (`systems`)."""
