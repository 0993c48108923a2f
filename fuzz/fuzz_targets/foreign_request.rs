#![no_main]

animatelcm_fuzz::target!(foreign_request);
