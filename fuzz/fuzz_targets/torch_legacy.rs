#![no_main]

animatelcm_fuzz::target!(torch_legacy);
