// What the cluster of the tests needs and no Debian package has: its certificates, images without a container engine,
// and the program that holds a pod's namespaces.
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tools:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 4 && args[0] == "certificates":
		return certificates(args[1], args[2], args[3])
	case len(args) >= 5 && args[0] == "image":
		return image(args[1], args[2], args[3], args[4:])
	case len(args) == 1 && args[0] == "pause":
		pause()
		return nil
	default:
		return fmt.Errorf("usage: tools certificates FOLDER NODE ADDRESS | image ARCHIVE NAME COMMAND PATH=FILE… | pause")
	}
}
