-- One bounded step of clearing away what an erasure left in the search index.
return sweep(ARGV[2], tonumber(ARGV[3])) and 1 or 0
