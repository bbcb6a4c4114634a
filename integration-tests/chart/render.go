// Renders a chart as Helm does, where there is no Helm: render <chart> <release> <Kubernetes version> [values file]...
// With the packages of Debian (golang-go, golang-github-masterminds-sprig-dev, golang-gopkg-yaml.v3-dev). Of Helm's engine it has what our chart uses: named templates, `include`, `toYaml`, `fail` and sprig.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"gopkg.in/yaml.v3"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Values as Helm has them: by way of JSON, so that every number is a float.
func read(path string) map[string]interface{} {
	text, err := os.ReadFile(path)
	check(err)
	var parsed map[string]interface{}
	check(yaml.Unmarshal(text, &parsed))
	words, err := json.Marshal(parsed)
	check(err)
	values := map[string]interface{}{}
	check(json.Unmarshal(words, &values))
	return values
}

func merge(into, from map[string]interface{}) {
	for name, value := range from {
		if inner, ok := value.(map[string]interface{}); ok {
			if outer, ok := into[name].(map[string]interface{}); ok {
				merge(outer, inner)
				continue
			}
		}
		if value == nil {
			delete(into, name)
		} else {
			into[name] = value
		}
	}
}

func main() {
	chart, release, version := os.Args[1], os.Args[2], os.Args[3]
	values := read(filepath.Join(chart, "values.yaml"))
	for _, file := range os.Args[4:] {
		merge(values, read(file))
	}
	about := read(filepath.Join(chart, "Chart.yaml"))
	all := template.New("chart").Option("missingkey=zero")
	functions := sprig.TxtFuncMap()
	functions["include"] = func(name string, data interface{}) (string, error) {
		var to bytes.Buffer
		err := all.ExecuteTemplate(&to, name, data)
		return to.String(), err
	}
	functions["toYaml"] = func(value interface{}) (string, error) {
		text, err := yaml.Marshal(value)
		return strings.TrimSuffix(string(text), "\n"), err
	}
	all.Funcs(functions)
	files, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	check(err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		check(err)
		_, err = all.New(filepath.Base(file)).Parse(string(text))
		check(err)
	}
	data := map[string]interface{}{
		"Values":  values,
		"Release": map[string]interface{}{"Name": release, "Namespace": "default", "Service": "Helm"},
		"Chart":   map[string]interface{}{"Name": about["name"], "Version": about["version"], "AppVersion": about["appVersion"]},
		"Capabilities": map[string]interface{}{
			"KubeVersion": map[string]interface{}{"Version": "v" + version},
		},
	}
	for _, file := range files {
		name := filepath.Base(file)
		if strings.HasPrefix(name, "_") {
			continue
		}
		var to bytes.Buffer
		check(all.ExecuteTemplate(&to, name, data))
		if filepath.Ext(name) == ".yaml" && strings.TrimSpace(to.String()) != "" {
			fmt.Printf("---\n# Source: %s\n%s\n", name, to.String())
		}
	}
}
