#![no_main]

animatelcm_fuzz::target!(train_plan);
