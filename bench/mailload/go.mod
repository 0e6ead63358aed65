module postern/bench/mailload

go 1.26
