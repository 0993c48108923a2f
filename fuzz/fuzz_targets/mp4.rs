#![no_main]

animatelcm_fuzz::target!(mp4);
