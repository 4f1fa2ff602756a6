"""The command line of covidjax: parses, calls the library, prints."""
