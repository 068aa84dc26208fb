module epiniod.test/cluster/tools

go 1.24.0
