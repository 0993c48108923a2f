#![no_main]

animatelcm_fuzz::target!(config_json);
