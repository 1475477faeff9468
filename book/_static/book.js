// Search fetches the pages it found for excerpts, which browsers refuse to pages opened from a folder.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
