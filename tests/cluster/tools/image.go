package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"
)

// Writes an image of one layer as the archive that `ctr images import` reads. A file is PATH=FILE, a link PATH->TARGET.
func image(archive, name, command string, contents []string) error {
	layer, err := layerOf(contents)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": strings.Fields(command), "Env": []string{"PATH=/bin"}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(digest[:])}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]any{map[string]any{
		"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return err
	}
	file, err := os.Create(archive)
	if err != nil {
		return err
	}
	out := tar.NewWriter(file)
	for _, entry := range []struct {
		name    string
		content []byte
	}{{"manifest.json", manifest}, {"config.json", config}, {"layer.tar", layer}} {
		if err := add(out, entry.name, 0o644, entry.content); err != nil {
			return err
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	return file.Close()
}

func layerOf(contents []string) ([]byte, error) {
	var layer bytes.Buffer
	out := tar.NewWriter(&layer)
	for folder, mode := range map[string]int64{"etc/": 0o755, "tmp/": 0o1777} {
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder, Mode: mode}); err != nil {
			return nil, err
		}
	}
	for _, content := range contents {
		if link, target, isLink := strings.Cut(content, "->"); isLink {
			header := tar.Header{Typeflag: tar.TypeSymlink, Name: relative(link), Linkname: target, Mode: 0o777}
			if err := out.WriteHeader(&header); err != nil {
				return nil, err
			}
			continue
		}
		name, source, isFile := strings.Cut(content, "=")
		if !isFile {
			return nil, fmt.Errorf("%q is neither PATH=FILE nor PATH->TARGET", content)
		}
		data, err := os.ReadFile(source)
		if err != nil {
			return nil, err
		}
		if err := add(out, relative(name), 0o755, data); err != nil {
			return nil, err
		}
	}
	err := out.Close()
	return layer.Bytes(), err
}

func add(out *tar.Writer, name string, mode int64, content []byte) error {
	header := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}
	if err := out.WriteHeader(&header); err != nil {
		return err
	}
	_, err := io.Copy(out, bytes.NewReader(content))
	return err
}

func relative(name string) string {
	return strings.TrimPrefix(path.Clean(name), "/")
}
