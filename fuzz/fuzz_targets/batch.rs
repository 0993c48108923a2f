#![no_main]

animatelcm_fuzz::target!(batch);
