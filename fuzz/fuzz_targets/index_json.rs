#![no_main]

animatelcm_fuzz::target!(index_json);
