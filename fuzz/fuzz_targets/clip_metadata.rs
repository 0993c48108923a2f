#![no_main]

animatelcm_fuzz::target!(clip_metadata);
