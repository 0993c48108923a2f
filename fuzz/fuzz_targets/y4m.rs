#![no_main]

animatelcm_fuzz::target!(y4m);
